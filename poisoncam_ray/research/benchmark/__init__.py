"""What the method and the cluster cost: two ways of the same work, in turns, on one machine.

parts.py         the parts and their sizes; runs them, resumes, writes benchmark.json
page.py          benchmark.md
compare.py       two ways in turns; machine.py: what they ran on; apart.py: a process of its own
images.py        drawn images of any size; made_up.py: stages that make in a moment what takes hours
timed_stage.py   a stage on Ray, again and again
candidate.py     the search of one candidate (search.py: in every way); search_stage.py: the whole stage
inference.py     Embed and Judge against a loop without Ray
training.py      steps (step_parts.py: their parts); epoch.py: epochs through Ray Train, and two workers
decode.py        images a core; shards.py: Index and Clean; exponents.py: growth; precision.py: bfloat16
memory.py        peak memory of every stage; processes.py samples it; peaks.py: as a part
allocator.py     freed memory kept against freed memory returned
"""
