"""Hydra's own tests of launchers, for ours: `hydra.test_utils.launcher_common_tests`.

Its ``IntegrationTestSuite`` is left out: it writes applications of its own and starts them, and our launchers are known
to Hydra only where `lmxexp` is (`lmxexp.compose.install`). tests/end_to_end/test_launchers.py does that with ours.
"""

import pytest
from hydra import version
from hydra.core.config_store import ConfigStore
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, LauncherTestSuite

from lmxexp.compose import install

LAUNCHERS = {
    "subprocess": {"_target_": "hydra_plugins.lmxexp_sweep.SubprocessLauncher", "n_jobs": 2},
    "population": {"_target_": "hydra_plugins.lmxexp_sweep.PopulationLauncher"},
}


@pytest.fixture(autouse=True)
def ours(hydra_restore_singletons):
    """Configurations of Hydra's tests know nothing of our conf/."""
    install()
    version.setbase("1.1")  # as if nothing of ours had run in this process: jobs change into their directories
    for name, node in LAUNCHERS.items():
        ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="lmxexp")


@pytest.mark.parametrize(("launcher_name", "overrides"), [("subprocess", []), ("population", [])])
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [(name, ["hydra.sweeper.max_batch_size=2"]) for name in ("subprocess", "population")],
)
class TestBatched(BatchedSweeperTestSuite):
    pass
