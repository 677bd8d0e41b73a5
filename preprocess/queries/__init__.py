"""Small worlds in which a question, as it stands, is a poor query: what DeepRetrieval learns to write, on two cores.

Every word of the embedded world's names has a second spelling. In ``passages`` a question spells a name in either way
and passages in one; in ``articles`` both occur in the records too, so that a good Boolean query names both; in
``database`` the answer is one SELECT away. Names that test questions are about occur in no training question.
"""
