"""CO2: energy times what the grid emits per kilowatt-hour. Always an estimate: the factor is a yearly average."""

import json
from importlib.util import find_spec
from pathlib import Path

from sizewise.core.errors import UnknownName
from sizewise.core.measurement import Measurement, unmeasured

WORLD_G_PER_KWH = 475.0
_WORLD = "world average 475 g/kWh (IEA, Global Energy & CO2 Status Report 2019)"
_NAME, _UNIT = "co2_g", "g"
_J_PER_KWH = 3.6e6


def co2(energy: Measurement, country: str | None = None, g_per_kwh: float | None = None) -> Measurement:
    """Grams of CO2 for some energy.

    Args:
        energy: in joules.
        country: three letters (ISO 3166), looked up in codecarbon's data where that is installed; None: world average.
        g_per_kwh: a factor of one's own, which goes before.

    Raises:
        UnknownName: no such country in codecarbon's data.
    """
    if energy.value is None:
        return unmeasured(_NAME, _UNIT, f"no energy: {energy.why}")
    factor, source = (g_per_kwh, f"{g_per_kwh:g} g/kWh (stated)") if g_per_kwh is not None else grid_factor(country)
    method = f"{energy.provenance} energy x {source}"
    grams = energy.value / _J_PER_KWH * factor
    return Measurement(_NAME, _UNIT, grams, n=energy.n, provenance="estimated", method=method, machine=energy.machine)


def grid_factor(country: str | None = None) -> tuple[float, str]:
    """Grams per kilowatt-hour and where the number is from.

    Raises:
        UnknownName: no such country.
    """
    if country is None:
        return WORLD_G_PER_KWH, _WORLD
    mixes = _codecarbon("global_energy_mix.json")
    if mixes is None:
        return WORLD_G_PER_KWH, _WORLD + "; install sizewise[energy] for countries"
    if country.upper() not in mixes:
        raise UnknownName("country", country, mixes, remedy="write three letters, such as FRA")
    mix = mixes[country.upper()]
    text = f"{mix['country_name']} {mix['carbon_intensity']:.0f} g/kWh ({mix['year']}, codecarbon's data)"
    return float(mix["carbon_intensity"]), text


def _codecarbon(name: str) -> dict[str, dict[str, float]] | None:
    """One of codecarbon's tables; the package itself is not imported, it would start meters of its own."""
    spec = find_spec("codecarbon")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "private_infra" / name
    if not path.is_file():
        return None
    table: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    return table
