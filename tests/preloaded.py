"""What the server of `tests.forks` imports once, for all processes that are forked from it."""

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

# Loads the compiled kernels.
RougeLIndex(threshold=0.7).gate(["Name three fruits.", "Name three fruits please."])
