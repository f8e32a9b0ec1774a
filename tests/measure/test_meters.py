"""Meters against closed forms, against processes whose use is known, and against counters written by the test."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ngram import COLOURS, NgramRunner

from sizewise.core.errors import UnknownName, UsageError
from sizewise.core.measurement import Measurement, unmeasured
from sizewise.core.model import Model
from sizewise.core.requests import Reply
from sizewise.measure.bench import bench
from sizewise.measure.machine import describe, fingerprint, machine_id
from sizewise.measure.meters.co2 import WORLD_G_PER_KWH, co2, grid_factor
from sizewise.measure.meters.cost import api_cost, cost
from sizewise.measure.meters.energy import EnergyWatch, energy, read_rapl
from sizewise.measure.meters.flops import Shape, flops, flops_of
from sizewise.measure.meters.latency import latency, of_replies, prompt, spread, timed
from sizewise.measure.meters.memory import high_water_bytes, memory
from sizewise.measure.meters.size import size
from sizewise.measure.processes import CpuClock, cpu_seconds, process_tree

MODEL = Model("m", "gguf", "sha256:0", {}, 1_000_000, parameters=2_000_000)
MB = 1 << 20


def child(code: str) -> "subprocess.Popen[str]":
    started = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def end(process: "subprocess.Popen[str]") -> None:
    process.communicate("\n", timeout=60)


# size and FLOPs


def test_size_is_arithmetic() -> None:
    assert [measurement.value for measurement in size(MODEL)] == [1_000_000, 2_000_000, 4.0]


def test_unknown_size_has_no_number() -> None:
    assert [m.value for m in size(replace(MODEL, parameters=None))] == [1_000_000, None, None]
    endpoint = size(replace(MODEL, kind="endpoint"))
    assert all(measurement.value is None and measurement.why for measurement in endpoint)


def test_flops_are_those_of_a_model_counted_by_hand() -> None:
    """One layer, width 4, vocabulary 10: q, k, v, o of 4 x 4, a two-matrix MLP of 4 x 8, an output matrix of 10 x 4."""
    matrices = 4 * 16 + 2 * 32
    by_hand = 2 * (matrices + 40) + 2 * (2 * 4 * 7)  # q.k and p.v over 7 positions of 4 channels
    assert flops_of(Shape(matrices + 80, 40, tied=False, layers=1, channels=4), 7) == by_hand
    assert flops_of(Shape(matrices + 40, 40, tied=True, layers=1, channels=4), 7) == by_hand
    assert flops_of(Shape(matrices + 40, 40, tied=True, layers=1, channels=4, experts=64, experts_used=0.25), 7) == (
        by_hand - 2 * 48
    )


def test_no_flops_without_facts() -> None:
    assert "linear" in flops(replace(MODEL, kind="linear")).why
    assert flops(replace(MODEL, kind="checkpoint")).value is None


# processor time and memory


def test_processor_time_of_a_child_is_seen_in_small_steps() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('ready', flush=True)\ninput()"
    process = child(burn)
    assert cpu_seconds([process.pid]) == pytest.approx(0.3, abs=0.15)
    end(process)


def test_processor_time_counts_children_that_have_ended() -> None:
    code = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', '''import time\n"
    code += "while time.process_time() < 0.4: pass'''])\nprint('ready', flush=True)\ninput()"
    process = child(code)
    assert cpu_seconds([process.pid]) >= 0.4
    end(process)


def test_the_clock_of_this_process_counts_work_and_not_sleep() -> None:
    clock = CpuClock([os.getpid()])
    time.sleep(0.05)
    idle = clock.read()
    sum(i * i for i in range(300_000))
    busy = clock.read()
    assert idle is not None
    assert busy is not None
    assert idle < 0.05
    assert busy > idle


def test_what_runs_elsewhere_has_no_processor_time() -> None:
    assert CpuClock([]).read() is None


def test_this_process_does_not_stand_for_its_children() -> None:
    process = child("print('ready', flush=True)\ninput()")
    assert [each.pid for each in process_tree([os.getpid()])] == [os.getpid()]
    assert [each.pid for each in process_tree([process.pid])] == [process.pid]
    end(process)
    assert process_tree([process.pid]) == []


def test_peak_memory_remembers_what_was_freed() -> None:
    process = child(f"data = bytearray({200 * MB})\ndel data\nprint('ready', flush=True)\ninput()")
    with memory([process.pid]) as watch:
        pass
    found = watch.measurement()
    mark = high_water_bytes(process.pid)
    end(process)
    assert mark is not None
    assert found.value == mark
    assert 200 * MB < mark < 300 * MB
    assert "VmHWM" in found.method


def test_memory_of_a_whole_tree_is_added() -> None:
    code = "import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', 'data = b\"x\" * 100_000_000\\n"
    code += "print(1, flush=True)\\ninput()'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)\n"
    code += "data = b'x' * 100_000_000\np.stdout.readline()\nprint('ready', flush=True)\ninput()\np.communicate('\\n')"
    process = child(code)
    with memory([process.pid]) as watch:
        pass
    end(process)
    assert 200_000_000 < (watch.measurement().value or 0) < 280_000_000


def test_memory_of_this_process_is_sampled_while_the_work_runs() -> None:
    with memory([os.getpid()]) as idle:
        pass
    with memory([os.getpid()]) as watch:
        data = bytearray(b"x") * (150 * MB)
        time.sleep(0.1)
        del data
    assert (watch.measurement().value or 0) - (idle.measurement().value or 0) > 100 * MB


def test_memory_of_an_endpoint_has_no_number() -> None:
    with memory([]) as watch:
        pass
    assert "cannot be seen" in watch.measurement().why


# latency


def test_replies_become_first_token_speed_and_total() -> None:
    replies = [
        Reply("x", "stop", 5, 11, 0.5, 1.5),
        Reply("x", "stop", 5, 21, 0.7, 2.7),
        Reply("x", "stop", 5, 1, 0.9, 0.9),
    ]
    first, speed, total = of_replies(replies)
    assert (first.value, first.n, first.spread) == (0.7, 3, "p5..p95")
    assert (speed.value, speed.n) == (10.0, 2)
    assert total.value == 1.5
    assert first.machine == machine_id()


def test_an_engine_that_does_not_tell_gives_reasons() -> None:
    first, speed, total = of_replies([Reply("x", "stop", None, None, None, 2.0)])
    assert (first.value, speed.value, total.value) == (None, None, 2.0)
    assert first.why
    assert speed.why


def test_the_warm_up_does_not_count_and_no_prompt_comes_twice() -> None:
    runner = NgramRunner(COLOURS)
    found = {measurement.name: measurement for measurement in latency(runner, tokens=4, repeats=6)}
    prompts = [request.prompt for request in runner.requests]
    assert len(prompts) == len(set(prompts)) == 7
    assert len({text[:2] for text in (prompt(number) for number in range(9))}) == 9
    assert [found[name].n for name in ("first_token_s", "tokens_per_second", "total_s")] == [6, 6, 6]


def test_latency_of_what_only_scores_or_embeds() -> None:
    for ability in ("score", "embed"):
        (found,) = latency(NgramRunner(COLOURS, abilities=frozenset({ability})), repeats=3)
        assert (found.name, found.n) == ("total_s", 3)
    assert latency(NgramRunner(COLOURS, abilities=frozenset()))[0].value is None


def test_spread_is_the_median_between_percentiles() -> None:
    found = spread("x", "s", [float(i) for i in range(101)], "m")
    assert (found.value, found.low, found.high) == (50.0, 5.0, 95.0)
    assert timed(lambda number: time.sleep(0.01), 3) >= [0.01] * 3


# energy, CO2, money


def counters(folder: Path, values: dict[str, int]) -> None:
    for name, value in values.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "energy_uj").write_text(f"{value}\n")
        (folder / name / "max_energy_range_uj").write_text("10000000\n")


def test_energy_is_read_from_all_packages_and_their_counters_may_start_again(tmp_path: Path) -> None:
    counters(tmp_path, {"intel-rapl:0": 9_000_000, "intel-rapl:1": 1_000_000, "intel-rapl:0:0": 5})
    watch = EnergyWatch([os.getpid()], powercap=tmp_path)
    with watch:
        counters(tmp_path, {"intel-rapl:0": 500_000, "intel-rapl:1": 3_000_000, "intel-rapl:0:0": 9_999_999})
    found = watch.measurement()
    assert found.value == pytest.approx(1.5 + 2.0)
    assert found.provenance == "measured"


def test_energy_without_counters_is_an_estimate_and_says_so(tmp_path: Path) -> None:
    watch = EnergyWatch([os.getpid()], watts_per_core=7.0, powercap=tmp_path)
    with watch:
        sum(i * i for i in range(200_000))
    found = watch.measurement()
    assert watch.cpu_s is not None
    assert found.value == pytest.approx(7.0 * watch.cpu_s)
    assert found.provenance == "estimated"
    assert "7 W per busy core" in found.method
    assert read_rapl(tmp_path) is None


def test_energy_of_what_runs_elsewhere_has_no_number(tmp_path: Path) -> None:
    with EnergyWatch([], powercap=tmp_path) as watch:
        pass
    assert watch.measurement().value is None
    assert energy(None).value is None


def test_co2_is_energy_times_the_grid() -> None:
    joules = Measurement("energy_j", "J", 7.2e6, provenance="measured")
    found = co2(joules)
    assert found.value == pytest.approx(2 * WORLD_G_PER_KWH)
    assert found.provenance == "estimated"
    assert "475 g/kWh" in found.method
    assert co2(joules, g_per_kwh=50).value == 100
    assert co2(unmeasured("energy_j", "J", "no counter")).why == "no energy: no counter"


def test_countries_come_from_codecarbons_table() -> None:
    pytest.importorskip("codecarbon")
    factor, text = grid_factor("fra")
    assert 20 < factor < 120
    assert text.startswith("France")
    with pytest.raises(UnknownName, match="three letters"):
        grid_factor("XXX")


def test_money_by_the_hour_and_by_the_token() -> None:
    assert cost(1800, 0.5).value == 0.25
    assert cost(1800, None).why
    prices = {"usd_per_million_input_tokens": 2.0, "usd_per_million_output_tokens": 8.0, "date": "2026-01-01"}
    found = api_cost(prices, 1000, 500)
    assert found.value == pytest.approx(0.006)
    assert (found.provenance, "2026-01-01" in found.method) == ("stated", True)
    assert api_cost({}, 1000, 500).value is None
    assert api_cost(prices, None, None).value is None


# all together


def test_bench_gives_every_figure_or_its_reason() -> None:
    runner = NgramRunner(COLOURS)
    found = {measurement.name: measurement for measurement in bench(MODEL, runner, tokens=4, repeats=2)}
    assert set(found) == {
        "bytes", "parameters", "bits_per_weight", "flops_per_token", "first_token_s", "tokens_per_second", "total_s",
        "throughput_tokens_per_second", "peak_memory_bytes", "energy_j", "co2_g", "cpu_s",
    }  # fmt: skip
    assert all(measurement.value is not None or measurement.why for measurement in found.values())
    assert found["energy_j"].n == 3
    with pytest.raises(UsageError):
        bench(MODEL, runner, tokens=0)


def test_the_fingerprint_names_the_machine() -> None:
    machine = fingerprint()
    assert len(machine["id"]) == 12
    assert machine["threads"] >= 1
    assert machine["memory_bytes"] > 1e8
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert machine["cpu"] in describe(machine)
    assert fingerprint() == machine
