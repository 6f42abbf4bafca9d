"""The stages of the defence: the cluster over artifacts. The maths is in method/.

Nothing is imported here: a worker process loads the one stage it works for.
"""
