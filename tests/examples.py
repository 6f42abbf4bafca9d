"""A property's own number of examples."""

from __future__ import annotations

from hypothesis import settings


def examples(usual: int) -> settings:
    """Settings for a property that needs another number of examples than the usual profile's 100.

    Args:
        usual: the number under the usual profile. Under another profile (tests/conftest.py) it grows with
            that profile's number: 20-fold under `thorough`.
    """
    return settings(max_examples=usual * settings().max_examples // 100)
