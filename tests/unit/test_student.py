"""Student's t against scipy, at few degrees of freedom and far out."""

import pytest
import scipy.stats

from rlmon import student


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 7, 8, 15, 31, 63, 200, 2000])
def test_quantiles_and_tails_are_those_of_scipy(degrees: int) -> None:
    for p in (0.5, 0.9, 0.975, 0.995, 0.9995, 0.999999):
        # the tail is 1 less a sum of order 1, so that 1e-16 is lost: 1e-10 of a tail of 1e-6
        assert student.quantile(p, degrees) == pytest.approx(scipy.stats.t.ppf(p, degrees), rel=1e-7, abs=1e-9)
    for t in (0.0, 0.3, 2.0, 5.0, 15.0):
        wanted = max(2 * scipy.stats.t.sf(t, degrees), student.LEAST_P)
        assert student.two_sided_p(-t, degrees) == pytest.approx(wanted, rel=1e-3)


def test_what_it_cannot_answer() -> None:
    for p, degrees in ((0.4, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="degree of freedom"):
            student.quantile(p, degrees)
