"""Research: attacks, evaluation, study, benchmark and the demo. The defence imports nothing from here."""
