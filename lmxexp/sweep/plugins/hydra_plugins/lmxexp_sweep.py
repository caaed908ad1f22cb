"""Our sweepers and launchers where Hydra takes plugins from: it accepts classes of `hydra_plugins` alone.

The folder above is put on the path by `lmxexp.compose.install`.
"""

from lmxexp.population.launcher import PopulationLauncher as _PopulationLauncher
from lmxexp.sweep.halving import HalvingSweeper as _HalvingSweeper
from lmxexp.sweep.subprocess_launcher import SubprocessLauncher as _SubprocessLauncher
from lmxexp.sweep.sweeper import GridSweeper as _GridSweeper
from lmxexp.sweep.sweeper import RandomSweeper as _RandomSweeper


class GridSweeper(_GridSweeper):
    __doc__ = _GridSweeper.__doc__


class RandomSweeper(_RandomSweeper):
    __doc__ = _RandomSweeper.__doc__


class HalvingSweeper(_HalvingSweeper):
    __doc__ = _HalvingSweeper.__doc__


class SubprocessLauncher(_SubprocessLauncher):
    __doc__ = _SubprocessLauncher.__doc__


class PopulationLauncher(_PopulationLauncher):
    __doc__ = _PopulationLauncher.__doc__
