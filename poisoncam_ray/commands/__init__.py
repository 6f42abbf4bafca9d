"""The commands of `poisoncam`, one a file.

What is heavy (Ray, torch, pyarrow) is imported inside a command, after its arguments are checked: a mistake
shows at once. A command checks, calls the package, and prints; it holds no other work.
"""
