"""For tests: input factories, enumeration, counting and drawing of any lattice, assert helpers. NumPy only."""

from pathsum.testing.asserts import assert_close as assert_close
from pathsum.testing.asserts import assert_rows_sum_to_zero as assert_rows_sum_to_zero
from pathsum.testing.asserts import assert_same_bits as assert_same_bits
from pathsum.testing.drawing import draw as draw
from pathsum.testing.inputs import ChainInputs as ChainInputs
from pathsum.testing.inputs import GridInputs as GridInputs
from pathsum.testing.inputs import chain_inputs as chain_inputs
from pathsum.testing.inputs import concatenate_targets as concatenate_targets
from pathsum.testing.inputs import grid_inputs as grid_inputs
from pathsum.testing.inputs import pack_rows as pack_rows
from pathsum.testing.inputs import unpack_rows as unpack_rows
from pathsum.testing.paths import Arc as Arc
from pathsum.testing.paths import Enumerated as Enumerated
from pathsum.testing.paths import arcs_out_of as arcs_out_of
from pathsum.testing.paths import count_paths as count_paths
from pathsum.testing.paths import enumerate_paths as enumerate_paths
from pathsum.testing.paths import is_final as is_final
from pathsum.testing.paths import start_node as start_node
from pathsum.testing.paths import sum_over_paths as sum_over_paths
