"""Local servers with the wire formats of public search services, for tests and for runs without a network.

``eutils`` speaks PubMed's E-utilities, ``trials`` ClinicalTrials.gov's version 2; both search one SQLite FTS5 table
with Boolean queries (``boolean``). They are small and strict.
"""
