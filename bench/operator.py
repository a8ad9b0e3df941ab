"""How fast the operator is, beside a bare client (the ceiling) and an empty kopf (the floor), on a real API server.

`python -m bench.operator` starts etcd and kube-apiserver, measures everything and writes bench/results/operator.json;
`--quick` takes few resources and one repeat, and claims nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

from bench import about
from bench.load import Client, Object, Paths, Population, Server, Watched, each, paced, stages, until
from bench.verdict import document, table
from bench.worker import PATIENCE, QUICK, Bench, Sizes, Worker, difference, processor_seconds, writes
from gemmatune_api import names
from tests.support.controlplane import ADMIN, ControlPlane

CRD = Path(__file__).parents[1] / f"crds/{names.PLURAL}.{names.GROUP}.yaml"
RESULTS = Path(__file__).parent / "results" / "operator.json"
CREATORS = 8


@contextlib.asynccontextmanager
async def watching(bench: Bench, path: str, test: Any = lambda obj: False) -> AsyncIterator[Watched]:
    """A watch of a collection from now on."""
    watched = Watched()
    since = (await bench.client.get(path, limit="1"))["metadata"]["resourceVersion"]
    task = asyncio.create_task(watched.follow(bench.client, path, since, test))
    try:
        yield watched
    finally:
        task.cancel()


def is_finished(run: Object) -> bool:
    """Whether a run has ended."""
    conditions = run.get("status", {}).get("conditions", [])
    return any(item["type"] == "Finished" and item["status"] == "True" for item in conditions)


def names_of(count: int) -> list[str]:
    return [f"run-{number}" for number in range(count)]


def percentile(values: list[float], share: float) -> float:
    """The value below which that share lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def first_jobs(bench: Bench, kind: str, count: int, rate: float | None) -> Object:
    """New resources, unthrottled or paced: Jobs per second, and seconds from a resource's existence to its Job's."""
    population = await bench.namespace()
    answered: dict[str, float] = {}

    async def create(name: str) -> None:
        await population.create(name)
        answered[name] = time.perf_counter()

    async with (
        bench.worker(kind, population.namespace) as worker,
        watching(bench, population.paths.jobs) as jobs,
        watching(bench, population.paths.runs, lambda run: run.get("status", {}).get("phase")) as runs,
    ):
        cpu, began = worker.cpu(), time.perf_counter()
        if rate is None:
            await each(names_of(count), create, CREATORS)
        else:
            await paced(names_of(count), create, rate)
        await worker.until(lambda: len(jobs.seen) >= count, f"{count} Jobs")
        seconds = max(jobs.seen.values()) - began
        await worker.until(lambda: len(runs.such) >= count, f"{count} statuses")
        statuses = max(runs.such.values()) - began
        await worker.settled()
        waits = [max(0.0, jobs.seen[f"{name}-p1"] - answered[name]) for name in answered]
        return {
            "resources": count,
            "seconds": seconds,
            "per_second": count / seconds,
            "statuses_per_second": count / statuses,
            "p50": percentile(waits, 0.5),
            "p95": percentile(waits, 0.95),
            "cpu_seconds_per_1000": (worker.cpu() - cpu) * 1000 / count,
        }


async def idle(bench: Bench, kind: str) -> list[float]:
    """Seconds to the Job of one resource at a time."""
    population = await bench.namespace()
    found = []
    async with (
        bench.worker(kind, population.namespace),
        watching(bench, population.paths.jobs) as jobs,
        watching(bench, population.paths.runs, lambda run: run.get("status", {}).get("phase")) as runs,
    ):
        for name in names_of(bench.sizes.idle):
            await population.create(name)
            answered = time.perf_counter()
            await until(lambda job=f"{name}-p1": job in jobs.seen, f"the Job of {name}", 60)  # type: ignore[misc]
            found.append(max(0.0, jobs.seen[f"{name}-p1"] - answered))
            await until(lambda run=name: run in runs.such, f"the status of {name}", 60)  # type: ignore[misc]
            await asyncio.sleep(0.2)
    return found


async def finishing(bench: Bench, kind: str, count: int) -> Object:
    """Attempts that end well: resources per second from the first Job's end to the last resource's."""
    population = await bench.namespace()
    await each(names_of(count), population.train, CREATORS)
    async with bench.worker(kind, population.namespace) as worker:
        await each(names_of(count), lambda n: population.pod_status(f"{n}-t1", bench.stages.done), CREATORS)
        await worker.settled()
        async with watching(bench, population.paths.runs, is_finished) as runs:
            began = time.perf_counter()
            await each(names_of(count), lambda n: population.complete(f"{n}-t1"), CREATORS)
            await worker.until(lambda: len(runs.such) >= count, f"{count} ends")
            return {"resources": count, "per_second": count / (max(runs.such.values()) - began)}


async def whole_runs(bench: Bench) -> Object:
    """Requests of the operator per run, from the resource's creation to its success."""
    population = await bench.namespace()
    found = names_of(bench.sizes.whole)
    async with (
        bench.worker("operator", population.namespace) as worker,
        watching(bench, population.paths.jobs) as jobs,
        watching(bench, population.paths.runs, is_finished) as runs,
        watching(bench, population.paths.runs, lambda run: run.get("status", {}).get("phase") == "Training") as trains,
    ):
        before = worker.requests()
        await each(found, population.create, CREATORS)
        await until(lambda: sum(job.endswith("-p1") for job in jobs.seen) == len(found), "preparations", PATIENCE)

        async def prepared(name: str) -> None:
            await population.pod(name, f"{name}-p1", "prepare", bench.stages.prepared)
            await population.complete(f"{name}-p1")

        await each(found, prepared, CREATORS)
        await until(lambda: sum(job.endswith("-t1") for job in jobs.seen) == len(found), "attempts", PATIENCE)
        await each(found, lambda n: population.pod(n, f"{n}-t1", "train", bench.stages.running), CREATORS)
        await until(lambda: len(trains.such) == len(found), "training", PATIENCE)
        await each(found, lambda n: population.pod_status(f"{n}-t1", bench.stages.done), CREATORS)
        await each(found, lambda n: population.complete(f"{n}-t1"), CREATORS)
        await until(lambda: len(runs.such) == len(found), "success", PATIENCE)
        await worker.settled()
        spent = difference(worker.requests(), before)
    per_run = {what: round(count / len(found), 2) for what, count in sorted(spent.items())}
    return {"by_verb": per_run, "writes_without_events": writes(spent) / len(found)}


async def living(bench: Bench) -> None:
    """Resources in training: memory beside the floor, progress that concerns nobody, and restarts."""
    population = await bench.namespace()
    found = names_of(bench.sizes.live)
    await each(found, population.train, CREATORS)
    async with (
        bench.worker("floor", population.namespace) as floor,
        bench.worker("operator", population.namespace) as worker,
    ):
        await until(lambda: worker.metric("gemmatune_reconciles_total") >= len(found), "all looks", PATIENCE)
        await worker.settled()
        bench.note("memory", {"operator": worker.resident(), "floor": floor.resident()})
        bench.note("progress", await progress(bench, population, worker, floor))
    for _ in range(bench.sizes.restarts):
        async with bench.worker("operator", population.namespace) as worker:
            await until(
                lambda: (
                    worker.metric("gemmatune_reconciles_total") >= len(found)
                    and not worker.metric("gemmatune_queue_depth")
                ),
                "the restarted operator to converge",
                PATIENCE,
            )
            seconds = time.perf_counter() - worker.began
            await worker.settled()
            bench.note("restart", {"seconds": seconds, "writes": writes(worker.requests(), events=True)})


async def progress(bench: Bench, population: Population, worker: Worker, floor: Worker) -> Object:
    """Progress writes at a steady rate: processor time of all processes, what of it arrived, and requests by the
    operator."""
    sizes, last = bench.sizes, dict.fromkeys(names_of(bench.sizes.live), 0)
    turns = {name: asyncio.Lock() for name in last}
    plan = [f"run-{number % sizes.live}" for number in range(int(sizes.progress_seconds * sizes.rate))]

    async def write(item: tuple[int, str]) -> None:
        number, name = item
        async with turns[name]:
            last[name] = number
            await population.progress(name, number)

    def spent() -> dict[str, float]:
        others = {name: psutil.Process(pid) for name, pid in bench.plane.pids.items()}
        return {
            "operator": worker.cpu(),
            "floor": floor.cpu(),
            **{name: processor_seconds(process) for name, process in {**others, "load": psutil.Process()}.items()},
        }

    requests, before = worker.requests(), spent()
    began = time.perf_counter()
    await paced(list(enumerate(plan, 1)), write, sizes.rate)
    seconds = time.perf_counter() - began
    await asyncio.sleep(1.0)
    cpu = {name: seconds_ - before[name] for name, seconds_ in spent().items()}
    calls = difference(worker.requests(), requests)
    stored = (await bench.client.get(population.paths.runs))["items"]
    lost = sum(run["status"]["progress"]["step"] != last[run["metadata"]["name"]] for run in stored)
    changed = sum(run["status"].get("phase") != "Training" for run in stored)
    counts = {"lost": lost, "harmed": changed, "calls": calls}
    return {"writes": len(plan), "rate": sizes.rate, "seconds": seconds, "cpu": cpu, **counts}


async def measure(bench: Bench) -> None:
    """Everything; repeats of the operator and of its ceiling take turns."""
    sizes = bench.sizes
    for _ in range(sizes.repeats):
        for kind in ("bare", "operator"):
            bench.note(f"burst {kind}", await first_jobs(bench, kind, sizes.burst, None))
            bench.note(f"paced {kind}", await first_jobs(bench, kind, sizes.burst, sizes.rate))
            bench.note(f"finish {kind}", await finishing(bench, kind, sizes.finished))
    for kind in ("bare", "operator"):
        bench.note(f"idle {kind}", await idle(bench, kind))
    bench.note("requests", await whole_runs(bench))
    await living(bench)
    for count in sizes.growth:
        bench.note("growth burst", await first_jobs(bench, "operator", count, None))
        bench.note("growth paced", await first_jobs(bench, "operator", count, sizes.rate))


async def served(client: Client) -> None:
    """Until the API server serves the resource: that is a moment after it says so."""
    for _ in range(600):
        with contextlib.suppress(RuntimeError):
            await client.get(Paths("default").runs)
            return
        await asyncio.sleep(0.1)
    raise TimeoutError("the API server does not serve the resource")


async def run(sizes: Sizes, logs: Path) -> dict[str, Any]:
    """Starts the control plane, measures, and ends it."""
    plane = await asyncio.to_thread(ControlPlane(controllers=False).start)
    try:
        plane.kubectl("apply", "--server-side", "-f", str(CRD))
        certificate, key = plane.client_cert(*ADMIN)
        server = Server(plane.server_url, str(plane.ca_path), str(certificate), str(key))
        async with Client(server) as client:
            await served(client)
            bench = Bench(plane, client, server, await asyncio.to_thread(stages), sizes, logs)
            await measure(bench)
            return bench.found
    finally:
        await asyncio.to_thread(plane.stop)


def main() -> None:
    """Measures, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gemmatune-bench-") as folder:
        found = asyncio.run(run(QUICK if arguments.quick else Sizes(), Path(folder)))
    result = {"minutes": round((time.monotonic() - began) / 60, 1), **document(found)}
    print(table(result))
    about.write(result, arguments.output)


if __name__ == "__main__":
    main()
