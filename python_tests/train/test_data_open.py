"""Opening a data set by its name: what is refused, and how."""

import pytest

from vqdm_train.data import open_dataset


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "builtin:nothing"}, r"expected builtin:photos, builtin:digits, a folder, a list \(.txt\), .*, got"),
        ({"data": "pipe:cat a.tar"}, "expected data on a disk, since a command or a download would be run, got pipe:"),
        ({"data": "https://a/b.tar"}, "expected data on a disk"),
        ({"data": "shards.tar.gz"}, "expected uncompressed tar shards"),
        ({"split": "test"}, 'expected split "train" or "eval", got \'test\''),
        ({"size": 0}, "expected size >= 1, got 0"),
        ({"in_channels": 4}, r"expected in_channels 1 \(grey\) or 3 \(RGB\) for builtin:photos, got 4"),
        ({"in_channels": 0}, "expected in_channels >= 1, got 0"),
        ({"min_scale": 0.0}, r"expected min_scale in \(0, 1\], got 0.0"),
        ({"min_scale": 1.5}, r"expected min_scale in \(0, 1\], got 1.5"),
        ({"max_corrupt": -0.1}, r"expected max_corrupt in \[0, 1\], got -0.1"),
        ({"data": "builtin:digits", "min_scale": 0.5}, "expected no min_scale for builtin:digits"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(**({"data": "builtin:photos", "split": "train", "size": 16} | options))
