"""The slots of a Ray cluster as Ray knows them, past any pool."""

import os
from typing import Any

import ray

from workers.slot import SlotView


def slots(namespace: str) -> set[str]:
    """The names of the slots in one namespace."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in named if actor["namespace"] == namespace}


def actor(namespace: str, slot: str) -> Any:
    """The handle of a slot."""
    return ray.get_actor(slot, namespace=namespace)


def view(namespace: str, slot: str) -> SlotView:
    """What the slot itself says."""
    seen: SlotView = ray.get(actor(namespace, slot).view.options(concurrency_group="control").remote())
    return seen


def pid(namespace: str, slot: str) -> int:
    """The id of the slot's process."""
    call = actor(namespace, slot).__ray_call__.options(concurrency_group="control")
    number: int = ray.get(call.remote(lambda _: os.getpid()))
    return number
