"""The inventories of words that every name of the embedded world is made of.

A name is two words, one of each list of its kind. Many names share a word, so a name cannot be guessed from its first
word: a model that answers rightly has copied both words out of a passage. No word stands in two lists, none is an
English stop word, and no two share a stem (a test holds them to it), so that BM25 tells names apart by their words.
"""

from __future__ import annotations

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """mara odin lena boris celia davin elsa fritz gwen hugo iris jonas kira leon mabel nico olga pavel quinn rosa
    silas tessa ulric vera wade xenia yuri zelda amos bella cyrus doris edgar flora gavin hanna ivan julia karl lydia
    milo nadia otto petra ralph sonja tobin ursa viktor wanda astrid bruno clara dmitri esther felix greta hector inga
    jasper"""
)
LAST_NAMES = _words(
    """ellwood barton crane dalby easton farrow garner holt ibsen jarvis keller lomax mercer norris oakes pryor quill
    radley sutton thorne upton vance weller yates abbott becker coburn draper elgin foster grimes harlow irwin jessop
    kemble latham morrow nolan osgood parrish rankin selby tilden underhill varley wexler archer blythe corwin dorsey
    emery fenwick gifford haskell ingram joyner kirby lasker madden newell orwin penrose quigley ramsay sexton talbot
    urban vickers walden yardley alcott bowen carver denby ellis fulton gentry hobart ives judson"""
)
WORK_COLOURS = _words(
    """crimson silver golden scarlet ivory amber cobalt emerald violet copper azure jade coral indigo ruby onyx pearl
    bronze velvet crystal hollow silent broken burning frozen hidden distant endless gentle savage sacred secret
    shattered shining sleeping sunken twisted wandering whispering winter summer autumn northern bitter ancient electric
    paper glass iron marble"""
)
WORK_NOUNS = _words(
    """harbor garden mirror lantern river tower crown bridge forest compass orchard engine feather window station
    shadow letter candle desert castle meadow anchor ladder market thunder valley temple island kingdom journey hammer
    blanket cradle dragon falcon fountain helmet jungle kettle locket needle oracle parade puzzle ribbon saddle tunnel
    umbrella violin wagon"""
)
CITY_FIRST = _words(
    """velmont osmere tarrin kelder ashby dunmor farhaven glenna halden jorvik lorien malden nesbit orlen perth
    renfrew stavan torvik wyndel zarow"""
)
CITY_SECOND = _words(
    """ridge heights crossing falls grove haven point springs bay bluff brook canyon cape cliff cove creek dale delta
    dock dune fields ford gate glade gorge green gulf heath hill inlet junction knoll lake landing ledge marsh mesa mill
    moor mount oasis park pass peak pines plains port quay rapids reef rock shore shoals square summit terrace trail
    vale village woods"""
)


def draw_names(first: tuple[str, ...], second: tuple[str, ...], count: int, rng: random.Random) -> tuple[str, ...]:
    """``count`` different names; raises ValueError if the two lists do not give as many."""
    pairs = [f"{a} {b}" for a in first for b in second]
    return tuple(rng.sample(pairs, count))
