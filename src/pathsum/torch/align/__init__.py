"""Best paths: the same lattices as the losses, asked which path is the best instead of what all sum to.

Scores have the samples first, ``(N, T, C)``, unless ``batch_first=False``; results always have. Of several best paths
one is returned by a fixed rule: traced from its end, a path stays where it is as long as it can, so that every label
begins as early as the best score allows (``forced_align`` has the details). The scores returned for frames are
differentiable.
"""
