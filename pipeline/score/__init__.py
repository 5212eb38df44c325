"""How well a model finds that image and caption of a pair fit: the filter of LAION and DataComp.

Scores are the cosine of the two features (CLIPScore without its weight of 2.5, arXiv 2104.08718).
"""
