"""CPU time of `sizewise --help`, beside that of lm-evaluation-harness where `--peer-python` has it.

Design: the command line imports typer and nothing heavy; each command imports its own stage when it is called. What is
left is the interpreter (0.03 s) and the drawing of the help page (0.2 s).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys

GOAL_S = 0.4


def cpu_seconds(command: list[str]) -> float:
    """User and system seconds of one run of `command`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Interleave the two, take medians, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="Python of an environment that has lm-eval")
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    ours_command = [sys.executable, "-m", "sizewise", "--help"]
    peer_command = [arguments.peer_python, "-m", "lm_eval", "--help"] if arguments.peer_python else None
    ours, peer = [], []
    for _ in range(arguments.runs):
        ours.append(cpu_seconds(ours_command))
        if peer_command:
            peer.append(cpu_seconds(peer_command))
    own = statistics.median(ours)
    other = statistics.median(peer) if peer else None
    result = {
        "name": "start_time",
        "ours": round(own, 3),
        "peer": round(other, 3) if other else None,
        "unit": "CPU seconds of --help",
        "ratio": round(own / other, 3) if other else None,
        "goal": f"<= {GOAL_S} s",
        "holds": own <= GOAL_S,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
