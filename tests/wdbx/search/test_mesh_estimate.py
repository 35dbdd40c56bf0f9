"""The estimate is the arithmetic it says it is."""

import pytest

from abi_jax.errors import InputError
from abi_jax.wdbx.search.mesh_estimate import Rates, estimate, smallest

RATES = Rates(read=4e12, product=8e14, link=4e11, latency=5e-6)


def test_one_device_reads_all_rows() -> None:
    made = estimate(1 << 20, 768, 1, 1, RATES)
    assert made.bytes_per_device == (1 << 20) * (768 * 2 + 9)
    assert made.seconds == pytest.approx(made.bytes_per_device / 4e12)
    assert made.merging == 0


def test_a_large_batch_waits_for_products() -> None:
    made = estimate(1 << 20, 768, 512, 1, RATES)
    assert made.seconds == pytest.approx(2 * (1 << 20) * 768 * 512 / 8e14)


def test_many_devices_share_the_rows_and_merge() -> None:
    """10 billion rows of 96 in int8 on 256 devices."""
    made = estimate(10**10, 96, 16, 256, RATES, "int8")
    assert made.merging == pytest.approx(8 * 5e-6 + 255 * 16 * 256 * 8 / 4e11)
    assert made.reading == pytest.approx(10**10 / 256 * 105 / 4e12, rel=1e-3)
    assert made.seconds == pytest.approx(max(made.reading, made.multiplying) + made.merging)
    assert smallest(10**10, 96, 80 << 30, "int8") == 13


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(InputError, match="rate link 0"):
        Rates(1, 1, 0, 0)
    with pytest.raises(InputError, match="devices 0"):
        estimate(1, 1, 1, 0, RATES)
    with pytest.raises(InputError, match="no row of 96 x int8 fits"):
        smallest(1, 96, 100, "int8")
