"""The stages of the defence: work on a Ray cluster, from artifacts to artifacts. The maths is in method/.

Nothing is imported here: a worker process loads only the stage that it works for.
"""
