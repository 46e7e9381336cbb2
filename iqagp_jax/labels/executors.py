"""Where labels are made: processes on this machine, Slurm jobs, Dask workers, all as executors of ``concurrent.futures``.

They keep a promise that ProcessPoolExecutor does not: when a worker dies, only the future of its own task raises.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context, parent_process
from typing import Any

JOB = {"name": "iqagp", "timeout_min": 60, "mem_gb": 4, "cpus_per_task": 1}
"""What a Slurm job gets unless told otherwise, in submitit's words."""


class Processes(ThreadPoolExecutor):
    """Processes on this machine, each fed by a thread of its own and replaced when it dies.

    Leaving the ``with`` block by an exception kills them, so that Ctrl-C need not wait for tasks in flight: these, and those
    that someone still asks for, raise CancelledError.
    """

    def __init__(self, workers):
        super().__init__(workers)
        self._killed = False
        # One thread each: BLAS reads this when a process imports it.
        os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        self._own = threading.local()
        self._lock = threading.Lock()
        self._connections = {}

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """The future of ``function(*arguments, **named)`` in a process of its own."""
        if self._killed:
            raise CancelledError("its processes were ended")
        return super().submit(self._hand_over, partial(function, **named), arguments)

    def _hand_over(self, function, arguments):
        process = getattr(self._own, "process", None)
        if process is None or not process.is_alive():
            process = self._own.process = self._start()
        try:
            self._connections[process].send((function, arguments))
            finished, result = self._connections[process].recv()
        except (EOFError, OSError):
            process.join()
            if self._killed:
                raise CancelledError("its process was ended") from None
            killed = " (out of memory?)" if process.exitcode == -signal.SIGKILL else ""
            raise RuntimeError(f"the process ended with exit code {process.exitcode}{killed}") from None
        if finished:
            return result
        raise result

    def _start(self):
        context = get_context("spawn")
        with self._lock:
            if self._killed:
                raise CancelledError("its processes were ended")
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,))
            process.start()
            theirs.close()
            self._connections[process] = ours
        return process

    def shutdown(self, wait=True, *, cancel_futures=False):
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            for process, connection in self._connections.items():
                connection.close()
                process.join()

    def __exit__(self, kind, *rest):
        if kind:
            with self._lock:
                self._killed = True
                for process in self._connections:
                    process.kill()
        return super().__exit__(kind, *rest)


def _serve(connection):
    """A process's life: do what comes along the connection until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with suppress(EOFError):
        while True:
            function, arguments = connection.recv()
            try:
                outcome = True, function(*arguments)
            except Exception as error:
                outcome = False, error
            connection.send(outcome)


def _die_with_parent():
    # Amid a task a process would not notice that the connection is closed.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Jobs(ThreadPoolExecutor):
    """At most ``workers`` jobs of a submitit executor at a time, each waited for by a thread.

    Leaving the ``with`` block by an exception cancels all of them.
    """

    def __init__(self, executor, workers):
        super().__init__(workers)
        self._executor = executor
        self._lock = threading.Lock()
        self._unwanted: tuple[str, ...] = ()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """The future of ``function(*arguments, **named)`` in a job."""
        return super().submit(self._run_job, partial(function, **named), arguments)

    def _run_job(self, function, arguments):
        with self._lock:
            job = self._executor.submit(function, *arguments)
        while not job.done():
            if job.state in self._unwanted:
                job.cancel(check=False)
                raise CancelledError(f"job {job.job_id} was cancelled")
            time.sleep(1)
        return job.result()

    def cancel_pending(self):
        """Cancel the jobs that have not begun."""
        self._unwanted = self._unwanted or ("PENDING",)

    def __exit__(self, kind, *rest):
        if kind:
            self._unwanted = ("PENDING", "RUNNING")
        return super().__exit__(kind, *rest)


def submitit_jobs(folder, workers, parameters):
    """Jobs of Slurm, or where there is no Slurm processes of this machine that submitit runs in their stead.

    ``folder`` takes submitit's files; ``parameters`` are those of submitit's AutoExecutor, such as ``timeout_min``,
    ``mem_gb`` and ``slurm_partition``, and override `JOB`.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError("Slurm jobs need submitit; install it with: pip install 'iqagp-jax[slurm]'") from error
    executor = submitit.AutoExecutor(folder=folder)
    try:
        executor.update_parameters(**{**JOB, **parameters})
    except (NameError, AssertionError) as error:
        raise ValueError(f"expected parameters of submitit's AutoExecutor, found {parameters} ({error})") from error
    return Jobs(executor, workers)


@contextmanager
def dask_workers(address):
    """The executor of a running Dask scheduler and the number of its workers, which must have one thread each."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("Dask needs distributed; install it with: pip install 'iqagp-jax[dask]'") from error
    with Client(address, set_as_default=False) as client:
        threads = client.nthreads()
        if not threads or set(threads.values()) != {1}:
            raise ValueError(
                f"expected workers of one thread each at {address}, found {sorted(threads.values())} threads; start them"
                " with `dask worker ADDRESS --nthreads 1`"
            )
        # Labels are written to disk: equal arguments are no reason to take an old result.
        yield client.get_executor(pure=False), len(threads)
