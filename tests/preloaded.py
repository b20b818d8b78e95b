"""The imports of the `tests.forks` server, which all processes forked from it share."""

import gc

import instructgen.commands.curate
import instructgen.commands.generate
import instructgen.commands.import_data
import instructgen.commands.merge
import instructgen.commands.train
import instructgen.engines.echo
import instructgen.evaluation.before_after
import instructgen.evaluation.plots
import instructgen.pipeline.command
import instructgen.training.online
import instructgen.training.policy
import instructgen.training.preference
import instructgen.training.sft  # noqa: F401
from instructgen.similarity import RougeLIndex

# This call loads the compiled kernels before the fork.
RougeLIndex(threshold=0.7).gate(["Name three fruits.", "Name three fruits please."])
# A collection in a fork would otherwise visit, and so copy, all that is imported here.
gc.freeze()
