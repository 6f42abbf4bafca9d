"""In which training an attack works: encoders trained without Ray, and attack success as it grows."""
