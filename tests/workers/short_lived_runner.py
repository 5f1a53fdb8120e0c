"""A runner that gives one trial out, lets go of its pool and ends."""

import sys
from pathlib import Path

from tests.contracts.pool import Driver
from tests.waiting import wait_for
from tests.workers.actors import view
from tests.workers.specs import micro_trial
from workers.ray_pool import RayPool
from workers.workspace import Workspace

if __name__ == "__main__":
    address, namespace, cache_dir, corpora_dir, key, seed, train_flops = sys.argv[1:]
    workspace = Workspace(cache_dir=Path(cache_dir), corpora_dir=Path(corpora_dir))
    driver = Driver(RayPool(workspace, address=address, owner="cccccc", namespace=namespace))
    slot = driver.start(key, micro_trial(seed=int(seed), train_flops=float(train_flops)))
    wait_for(lambda: view(namespace, slot).key == key, what=f"the start of {key}")
    driver.pool.close()
