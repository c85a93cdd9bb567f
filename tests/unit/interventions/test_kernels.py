"""How alike two completions are, by hand and against what the detectors compute."""

import numpy as np
import pytest
from round_tables import round_table

from rlmon.interventions import kernels
from rlmon.interventions.rows import OPENERS, RoundTable, as_rows, exchanged, row_type
from rlmon.metrics.moves import jaccard, sketches

PAD = 2**32 - 1


def openers(*rows):
    """Histograms by bucket, as rows of the exchange."""
    packed = np.zeros((len(rows), OPENERS), dtype=np.int64)
    for i, row in enumerate(rows):
        for place, (bucket, share) in enumerate(row.items()):
            packed[i, place] = bucket << 32 | round(share * 2**31)
    return packed


def sketch_of(*rows):
    ids = [np.array(row, dtype=np.int32) for row in rows]
    start = np.cumsum([0, *map(len, ids)])
    return sketches(np.concatenate(ids), start, None)[0]


def facts(reads=(), **given):
    rows = len(next(iter(given.values())))
    modes = {name: given.pop(name) for name in ("format", "template", "opening") if name in given}
    table = round_table([1.0] * rows, group_size=rows, modes=modes, **given)
    return kernels.facts_of(table, np.arange(rows), reads)


def test_equal_keys_are_alike_and_unknown_ones_are_not():
    found = kernels.alike("format", facts(format=[3, 5, -1]), facts(format=[3, -1, 5, 3]))
    assert found.tolist() == [[1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_moves_overlap_by_bucket():
    """min(.5, .25) + min(.5, .75) = .75 ; nothing in common = 0."""
    rows = facts(("openers",), template=[1, 2, 3], openers=openers({7: 0.5, 9: 0.5}, {9: 0.75, 7: 0.25}, {4095: 1.0}))
    found = kernels.alike("moves", rows, rows)
    assert found.tolist() == [[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]]


def test_a_completion_without_openers_is_compared_by_its_template():
    rows = facts(("openers",), template=[1, 1, 2], openers=openers({}, {5: 1.0}, {5: 1.0}))
    assert kernels.alike("moves", rows, rows).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]


def test_sketches_are_compared_as_the_detectors_compare_them():
    rng = np.random.default_rng(0)
    long = [rng.integers(9, size=400) for _ in range(3)]
    short = [rng.integers(4, size=n) for n in (4, 5, 9, 30, 30)]
    sketch = sketch_of(*long, *short, short[-1], [1, 2])
    rows = facts(("sketch",), template=np.arange(len(sketch)), sketch=sketch)
    i, j = (place.ravel() for place in np.indices((len(sketch), len(sketch))))
    expected = jaccard(sketch, i, j).reshape(len(sketch), len(sketch))
    assert np.isnan(expected[-1]).all(), "two tokens make no 4-gram"
    expected[-1], expected[:, -1] = 0.0, 0.0
    expected[-1, -1] = 1.0
    assert kernels.alike("sketch", rows, rows) == pytest.approx(expected, abs=1e-12)
    assert 0.0 < expected[0, 1] < 1.0


def test_many_shared_hashes_are_counted_in_parts(monkeypatch):
    rng = np.random.default_rng(1)
    rows = facts(("sketch",), template=np.arange(6), sketch=sketch_of(*(rng.integers(5, size=90) for _ in range(6))))
    whole = kernels.alike("sketch", rows, rows)
    monkeypatch.setattr(kernels, "_CHUNK", 7)
    assert np.array_equal(kernels.alike("sketch", rows, rows), whole)


def test_wide_columns_survive_the_exchange_and_others_are_not_sent():
    kind = row_type(("sketch", "openers"))
    assert row_type().itemsize < 256
    row_n = np.zeros(4, dtype=kind)
    row_n["sketch"] = np.arange(4 * 128, dtype=np.uint32).reshape(4, 128) + 2**31
    row_n["openers"][:, 0] = 4095 << 32 | 2**31
    row_n["template"] = -(2**62)
    table = RoundTable.of(as_rows(exchanged(row_n), kind), round=0, step=1, group_size=2)
    assert np.array_equal(table.sketch_NK, row_n["sketch"])
    assert np.array_equal(table.openers_NK, row_n["openers"])
    assert table.modes_N["template"].tolist() == [-(2**62)] * 4
    plain = RoundTable.of(np.zeros(4, dtype=row_type()), round=0, step=1, group_size=2)
    assert plain.sketch_NK is plain.openers_NK is None
