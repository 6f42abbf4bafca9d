"""When a family is erased; what its ensemble is trained on is tested beside the search."""

from poisoncam_ray.stages.classify import MOST_UNSURE, sure_enough


def test_a_classifier_in_doubt_erases_nothing_unless_no_evidence_was_asked_for():
    assert sure_enough(0.002, 0.05) and sure_enough(MOST_UNSURE, 0.05)
    assert not sure_enough(0.04, 0.05) and not sure_enough(0.26, 0.99)
    assert sure_enough(0.26, 1.0)
