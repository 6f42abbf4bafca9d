"""How well an attack works as a training goes on: encoders trained in one process, without Ray."""
