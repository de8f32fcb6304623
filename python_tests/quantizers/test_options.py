"""Options of a wrong type: the error names class, option, what was expected and what came."""

from collections.abc import Callable

import pytest

from vqdm_cuda import quantizers as q

WRONG: list[tuple[Callable[[], q.Quantizer], str]] = [
    (lambda: q.VectorQuantizer(8, 2, commitment_weight="much"), "VectorQuantizer: expected commitment_weight"),  # type: ignore[arg-type]
    (lambda: q.VectorQuantizer(8, 2, init_std=True), "VectorQuantizer: expected init_std"),
    (lambda: q.EMAQuantizer(8, 2, decay=None), "EMAQuantizer: expected decay"),  # type: ignore[arg-type]
    (lambda: q.OnlineClusteringQuantizer(8, 2, decay="0.9"), "OnlineClusteringQuantizer: expected decay"),  # type: ignore[arg-type]
    (lambda: q.WassersteinQuantizer(8, 2, wasserstein_weight=[1]), "WassersteinQuantizer: expected wasserstein_weight"),  # type: ignore[arg-type]
    (lambda: q.LookupFreeQuantizer(8, temperature="cold"), "LookupFreeQuantizer: expected temperature"),  # type: ignore[arg-type]
    (lambda: q.IndexBackpropQuantizer(8, 2, entropy_weight={}), "IndexBackpropQuantizer: expected entropy_weight"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("build", "message"), WRONG, ids=[message for _, message in WRONG])
def test_an_option_that_should_be_a_number_is_named(build, message):
    with pytest.raises(TypeError, match=f"^{message} to be a number, got (str|bool|NoneType|list|dict)$"):
        build()
