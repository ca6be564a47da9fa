"""The mutants of mutants.py."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """``text``, once in ``file`` of kernels/cuda, becomes ``replacement``; then ``test`` with ``-k only`` must fail."""

    name: str
    file: str
    text: str
    replacement: str
    test: str
    only: str = ""


_INSTRUCTION = "test_cuda.py::test_instruction"
_ORDER = "test_cuda.py::test_order_of_threads"
_SHALLOW = "    cuda.syncthreads()\n"
_BARRIER = f"    {_SHALLOW}"
_GEMM, _TENSOR, _UPDATE = "test_cuda_gemm.py", "test_cuda_tensor.py", "test_cuda_update.py"

# fmt: off
MUTANTS = [
    # products
    Mutant("no barrier between slices", "gemm_text.py", '*each("store"), "cuda.syncthreads()", *turn]',
           '*each("store"), *turn]', f"{_GEMM}::test_order_of_threads"),
    Mutant("no barrier before the first slice", "gemm_text.py", '        "cuda.syncthreads()",\n        *each("fragment"',
           '        *each("fragment"', f"{_GEMM}::test_order_of_threads"),
    Mutant("buffers do not take turns", "gemm_text.py", '"turn = index(-turn)"', '"turn = index(turn)"',
           f"{_GEMM}::test_ragged_by_one", "float32"),
    Mutant("the second buffer is the first", "gemm_text.py", '_fill = index({n}_fill + {buffer})"',
           '_fill = index({n}_fill)"', f"{_GEMM}::test_ragged_by_one", "float32"),
    Mutant("one column beyond the side is read", "gemm_text.py", 'last if {n}_i < {size} else zero_index"]',
           'last if {n}_i <= {size} else zero_index"]', f"{_GEMM}::test_ragged_by_one", "float32"),
    Mutant("one row beyond the result is written", "gemm_text.py", '"if r < rows:", "    at', '"if r <= rows:", "    at',
           f"{_GEMM}::test_ragged_by_one", "float32"),
    Mutant("a share goes on to the end", "gemm_text.py", "min(inner, first + share)", "inner", f"{_GEMM}::test_in_parts",
           "float32"),
    Mutant("parts lie on each other", "gemm_text.py", '"part = cuda.blockIdx.y * rows * columns"', '"part = 0"',
           f"{_GEMM}::test_in_parts", "float32"),
    Mutant("parts are added from the last one", "gemm_text.py", "for part in range(1, parts):",
           "for part in range(parts - 1, 0, -1):", f"{_GEMM}::test_parts_are_added_in_order"),
    Mutant("the last part is left out", "gemm_text.py", "for part in range(1, parts):", "for part in range(1, parts - 1):",
           f"{_GEMM}::test_in_parts", "float32"),
    Mutant("lanes of a warp are swapped", "gemm_text.py", "* 4 + t % 32 // 8)", "* 4 + t % 4)",
           f"{_GEMM}::test_ragged_by_one", "float32"),
    Mutant("no barrier between slices of words", "gemm_tensor.py", "{write_next}\n        cuda.syncthreads()\n",
           "{write_next}\n", f"{_TENSOR}::test_other_orders_of_the_threads"),
    Mutant("no barrier before the first words", "gemm_tensor.py", "    cuda.syncthreads()\n    for now", "    for now",
           f"{_TENSOR}::test_other_orders_of_the_threads"),
    Mutant("pages do not take turns", "gemm_tensor.py", "page = {words} - page", "page = page",
           f"{_TENSOR}::test_other_orders_of_the_threads"),
    Mutant("words beyond the inner index", "gemm_tensor.py", 'base + q{n} + {i} < inner"', 'base + q{n} + {i} <= inner"',
           f"{_TENSOR}::test_rows_of_any_length", "tf32"),
    Mutant("halves of a fragment are swapped", "gemm_tensor.py", "(step + 4 * half) * left_row + 16 * i + 8 * lower",
           "(step + 4 * lower) * left_row + 16 * i + 8 * half", f"{_TENSOR}::test_a_product", "tf32"),
    # norms
    Mutant("no barrier before moments are merged", "norm.py", f"{{keep}}\n{_SHALLOW}", "{keep}\n", _ORDER, "batch_norm_forward"),
    Mutant("no barrier in the tree of moments", "channels.py", "shared_count[t] = total\n        cuda.syncthreads()\n",
           "shared_count[t] = total\n", _INSTRUCTION, "batch_norm_forward and places"),
    Mutant("no barrier before gradients are added", "column_sums.py", f"{{keep}}\n{_SHALLOW}", "{keep}\n", _ORDER, "batch_norm_backward"),
    Mutant("the last block of rows counts as a whole one", "norm.py", "n = full if k + 1 < blocks else rest", "n = full",
           _INSTRUCTION, "batch_norm_forward and tall"),
    Mutant("places of a channel do not go on to the next sample", "channels.py", "place -= spatial\n            row += 1",
           "place -= spatial", "test_cuda_rows.py::test_channels_of_several_parts", "forward"),
    Mutant("channels and parts are swapped", "channels.py", "means[part, channel] = shared_mean[0]",
           "means[channel, part] = shared_mean[0]", _INSTRUCTION, "batch_norm_forward and places"),
    # warps
    Mutant("the nearest lanes do not meet", "warp.py", "for offset in (16, 8, 4, 2, 1):\n        v += ",
           "for offset in (16, 8, 4, 2):\n        v += ", _INSTRUCTION, "softmax_forward and warp"),
    Mutant("one row too many", "warp.py", "if row >= rows:", "if row > rows:", _INSTRUCTION, "softmax_forward and prime"),
    Mutant("a vector beyond the row", "warp.py", "inside = column + {last} < columns", "inside = column + {last} <= columns",
           _INSTRUCTION, "softmax_forward and warp"),
    Mutant("the label of the first lane for all", "softmax.py", 'relative=" - column" if kept else ""', 'relative=""',
           _INSTRUCTION, "softmax_cross_entropy and warp"),
    Mutant("the mass of the targets is left out", "softmax.py", "share = w * inverse\n    scale = mass * share / total", "share = w * inverse\n    scale = share / total",
           _INSTRUCTION, "softmax_cross_entropy_dense and warp"),
    Mutant("lanes of a long row overlap", "warp.py", "columns, {self.lanes * WIDTH})", "columns, {WIDTH})",
           "test_cuda_rows.py::test_rows_of_any_length", "softmax_forward-float32-1036"),
    Mutant("a long row is taken from its second vector on", "warp.py", "range({self.lanes} * cuda.threadIdx.x", "range({self.lanes} * (cuda.threadIdx.x + 1)",
           "test_cuda_rows.py::test_rows_of_any_length", "group_norm_backward-float32-1036"),
    Mutant("the first elements alone", "elements.py", "range(whole + cuda.grid(1), size", "range(size, size", _INSTRUCTION,
           "hadamard and prime"),
    Mutant("neighbours take the step of one", "elements.py", "range({lanes} * cuda.grid(1), whole", "range(cuda.grid(1), whole",
           "test_cuda_rows.py::test_the_same_bits_wherever_arrays_begin", "hadamard"),
    Mutant("groups of columns in a vector", "column_sums.py", "lanes = 1 if neighbours % lanes else lanes", "pass",
           _INSTRUCTION, "group_norm_backward and pairs"),
    Mutant("no barrier before a sum over a block", "block.py", f"sums[t] = v\n{_SHALLOW}", "sums[t] = v\n", _ORDER, "record"),
    Mutant("of equal scores the last one", "rowwise.py", "other_place < place", "other_place > place",
           "test_cuda.py::test_accuracy_takes_the_first_maximum"),
    # cursor
    Mutant("rows are gathered from the beginning", "rowwise.py", "order[cursor[0] + row]", "order[row]", _INSTRUCTION,
           "gather_rows"),
    Mutant("every mini-batch is recorded as the first", "rowwise.py", "history[cursor[1]] = sums[0]", "history[0] = sums[0]", _INSTRUCTION,
           "record"),
    Mutant("the cursor skips a mini-batch", "launch.py", "cursor[0] += rows", "cursor[0] += 2 * rows",
           "test_cuda_driver.py::test_a_cursor_on_the_device_says_which_mini_batch_it_is"),
    Mutant("the cursor is not set back", "engine.py", "        cursor.fill(0)\n", "        pass\n",
           "test_cuda_driver.py::test_a_cursor_on_the_device_says_which_mini_batch_it_is"),
    # updates
    Mutant("no barrier in the tree of sums", "block.py", f"{_BARRIER}        half //= 2", "        half //= 2", _ORDER,
           "clip_by_global_norm"),
    Mutant("the compensation has the other sign", "update.py", "(following - total{k}) - term if", "term - (following - total{k}) if",
           f"{_UPDATE}::test_the_norm_keeps_what_rounding_takes"),
    Mutant("the last elements are left out of the norm", "update.py", "    if i < g.size:", "    if i < 0:",
           f"{_UPDATE}::test_every_element_enters_the_norm"),
    Mutant("steps are not skipped", "update.py", "    if u[4] != zero:\n        return\n", "",
           "test_cuda.py::test_a_step_that_is_skipped_changes_nothing"),
    Mutant("all tensors take the uniforms of the first", "update.py", "u = given[blocks[b, 2]]", "u = given[0]",
           _INSTRUCTION, "optimizer_update_by_tensor"),
    Mutant("sums of tensors hold those before", "by_tensor.py", "if blocks[b, 2] == tensor:", "if blocks[b, 2] <= tensor:",
           _INSTRUCTION, "clip_by_norm"),
    Mutant("the last element of a tensor is left out", "by_tensor.py", "high = blocks[b, 1]", "high = blocks[b, 1] - 1",
           _INSTRUCTION, "clip_by_norm"),
    Mutant("rows of a panel are added before all lanes are there", "factors.py", "            sums[at + height + j] = below\n        cuda.syncthreads()\n",
           "            sums[at + height + j] = below\n", _ORDER, "factor_sums"),
    Mutant("columns of a warp beside those of another", "factors.py", "for i in range(1, {DEPTH}):", "for i in range(2, {DEPTH}):",
           _INSTRUCTION, "factor_sums"),
    Mutant("rows are not relative to their mean", "update.py", "factors[along + row] / mean if mean != zero else ", "",
           _INSTRUCTION, "optimizer_update_by_tensor"),
    Mutant("the sums of a panel belong to the one before", "factors.py", "panels[p + k, 5] + i % {PANEL_ROWS}",
           "panels[p, 5] + i % {PANEL_ROWS}", f"{_UPDATE}::test_rows_and_columns_of_several_panels"),
    Mutant("the scale of the loss is another word", "finite.py", "factor = number(scaler[0])", "factor = number(scaler[1])",
           _INSTRUCTION, "scale_loss"),
    Mutant("gradients are multiplied by the scale again", "finite.py", "uniforms[0] /= scaler[0]\n        move_", "uniforms[0] *= scaler[0]\n        move_",
           _INSTRUCTION, "check_finite"),
    Mutant("what one thread found is the last that it looked at", "finite.py", "total += np.int32(1)\n        i =",
           "total = np.int32(0)\n        i =", "test_cuda.py::test_what_is_not_finite_is_found_wherever_it_lies"),
    Mutant("two columns share a random word", "dropout.py", "x[at + {k}] * scale if w{k}", "x[at + {k}] * scale if w0", _INSTRUCTION,
           "dropout and prime"),
    Mutant("partial sums that nobody wrote", "weights.py", "partial[t] if t < partial.size else zero",
           "partial[t % partial.size]", _INSTRUCTION, "weight_penalty and prime"),
    # numbers of 16 bits
    Mutant("bfloat16 is shifted by 15", "vector.py", "words.astype(np.uint32) << np.uint32(16)",
           "words.astype(np.uint32) << np.uint32(15)", "test_cuda_mixed.py::test_conversions"),
    # launches and graphs
    Mutant("strides in elements", "driver.py", "strides.insert(0, strides[0] * extent)", "strides.insert(0, extent)",
           "test_cuda_driver.py::test_parameters_lie_where_their_pointers_say"),
    Mutant("pointers of 4 bytes", "driver.py", "base + 8 * np.arange", "base + 4 * np.arange",
           "test_cuda_driver.py::test_parameters_lie_where_their_pointers_say"),
    Mutant("scalars share a word", "driver.py", "value[: len(parameter)] = ", "value[: 1] = ",
           "test_cuda_driver.py::test_parameters_lie_where_their_pointers_say"),
    Mutant("a graph of other arrays", "engine.py", "key = name, rows, bound, get_matmul_precision()",
           "key = name, rows, (), get_matmul_precision()", "test_cuda_driver.py::test_arrays_that_are_held_are_copied_once"),
    Mutant("strides between models are half as long", "batched.py", "return step // array.dtype.itemsize",
           "return step // array.dtype.itemsize // 2", "test_cuda_many.py::test_products_on_tensor_cores"),
    Mutant("all models take the memory of the first", "batched.py", "model * s{k}", "0 * s{k}",
           "test_cuda_many.py::test_products_on_tensor_cores"),
    Mutant("models share their partial sums", "batched.py", "return self.add(parts)[:count]", "self.share(parts)\n        return parts[0][:count]",
           "test_cuda_many.py::test_the_bits_are_those_of_one_after_the_other", "float32-reverse"),
    # arrays of other libraries, and devices
    Mutant("the stream of an array is not waited for", "foreign.py", "_wait(cupy.cuda.get_current_stream().ptr, stream)", "pass",
           "test_exchange.py::test_streams_of_the_interface_are_waited_for_on_the_device"),
    Mutant("other libraries do not wait", "foreign.py", "_wait(stream, current)", "pass",
           "test_exchange.py::test_torch_goes_on_behind_what_reads_and_writes_its_tensors"),
    Mutant("arrays that are read are not kept", "foreign.py", "_kept.append((event, unknown))", "pass",
           "test_exchange.py::test_arrays_whose_stream_is_unknown_live_until_they_were_read"),
    Mutant("read-only arrays are written", "foreign.py", 'bool(array.__cuda_array_interface__["data"][1])', "False",
           "test_exchange.py::test_read_only_arrays_of_a_gpu_are_not_written"),
    Mutant("streams of the first device for all", "arrays.py", "with cupy.cuda.Device(device):\n            return cupy.cuda.Stream",
           "with cupy.cuda.Device(0):\n            return cupy.cuda.Stream",
           "test_devices.py::test_models_on_two_devices_train_alike"),
    Mutant("engines stay on the caller's device", "arrays.py", "with cupy.cuda.Device(stream.device_id):",
           "with cupy.cuda.Device():", "test_devices.py::test_models_on_two_devices_train_alike"),
    Mutant("arrays that are held are copied", "engine.py", "array if memory.there(array) else self._copied(array)",
           "self._copied(array)", "test_exchange.py::test_models_train_where_their_arrays_lie"),
]
# fmt: on
