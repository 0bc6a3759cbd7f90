"""The process that carries out a publication: it may open what nobody here has made, so it has limits."""

from typing import Any

from app.machine import available_cpus, limit_process, start_numeric_threads
from app.registry.errands import Say, run_errands
from app.training.orders import Order


def _errand(document: dict[str, Any], say: Say) -> str:
    order = Order.model_validate(document)
    say(f"opening {order.title}")
    start_numeric_threads(available_cpus())  # before numpy is imported
    from app.training.publication import carry_out  # noqa: PLC0415 -- its size is no part of what a model may take

    most = order.models.max_bytes
    limit_process(more_bytes=most, cpu_seconds=order.cpu_seconds, file_bytes=most)
    return carry_out(order, say).to_json().decode()


if __name__ == "__main__":
    run_errands(_errand)
