"""What becomes of each field of ``config.pbtxt``: honoured, or refused with a reason.

One entry for every field that protobuf knows, so that none is silently ignored; a test walks
the schema and compares. ``[]`` marks a list or map of messages. A field that is refused as a
whole has no entries for what is inside it.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Honoured(NamedTuple):
    """The field has an effect; ``note`` says which."""

    note: str


class Refused(NamedTuple):
    """Setting the field to anything but its default is an error."""

    reason: str
    instead: str


WITH_TRITON: Final = (
    "leave it with a Triton server and put a model.yaml in the place of this file: {runtime:"
    " triton, remote: {url: 'grpc://HOST:8001'}}"
)
"""For what Triton alone can do."""

_SHAPE_TENSOR = Refused(
    "shape tensors are TensorRT's way to pass a shape as a value and no runtime here has them",
    "export the model to ONNX, where such an input is an ordinary tensor",
)
_NON_LINEAR = Refused(
    "non-linear memory formats are TensorRT's own and no runtime here has them",
    "build the model with linear inputs and outputs",
)
_NO_PIN = Honoured(
    "no effect: a hint about a staging buffer that does not exist here; true is Triton's own"
    " default and false is what happens"
)

FIELDS: Final[dict[str, Honoured | Refused]] = {
    # ---- what the model is ----
    "name": Honoured("must equal the name of the model's folder"),
    "platform": Honoured("names the runtime: onnxruntime_onnx is onnx, pytorch_libtorch is torch"),
    "backend": Honoured(
        "names the runtime: onnxruntime is onnx, pytorch is torch, any other name is the name of"
        " a runtime"
    ),
    "runtime": Refused(
        "it names the library file of a Triton backend",
        "say which runtime loads the model with 'backend'",
    ),
    "default_model_filename": Honoured("becomes 'file'; must lie inside the version's folder"),
    "cc_model_filenames": Refused(
        "a file for each GPU generation is not supported",
        "name one file with default_model_filename, or one a version with 'version_files' in"
        " model.yaml",
    ),
    "version_policy": Honoured("becomes 'versions'; absent is the latest one, as in Triton"),
    "version_policy.latest": Honoured("the newest versions are served"),
    "version_policy.latest.num_versions": Honoured("how many of the newest; 0 is 1"),
    "version_policy.all": Honoured("every version is served"),
    "version_policy.specific": Honoured("the listed versions are served"),
    "version_policy.specific.versions": Honoured("which versions; at least one"),
    # ---- signature ----
    "max_batch_size": Honoured(
        "most rows in one batch. 0 is no batching; a file that mentions neither it nor inputs nor"
        " outputs leaves it to be found out from the artifact"
    ),
    "input": Honoured("declared inputs; without any they are read from the artifact"),
    "input[].name": Honoured("the input's name; required, each once"),
    "input[].data_type": Honoured("the input's datatype (TYPE_STRING is BYTES); required"),
    "input[].format": Honoured(
        "shown to clients that ask for the configuration, as in Triton; needs three dims"
    ),
    "input[].dims": Honoured("without the batch dimension if max_batch_size is above 0; required"),
    "input[].reshape": Honoured("the shape that the runtime gets"),
    "input[].reshape.shape": Honoured("must have as many elements as dims"),
    "input[].is_shape_tensor": _SHAPE_TENSOR,
    "input[].allow_ragged_batch": Refused(
        "rows of different shapes are batched with their like, never concatenated",
        "leave it out (each shape forms batches of its own), or pad in the client",
    ),
    "input[].optional": Honoured("requests may leave the input out"),
    "input[].is_non_linear_format_io": _NON_LINEAR,
    "output": Honoured("declared outputs; without any they are read from the artifact"),
    "output[].name": Honoured("the output's name; required, each once"),
    "output[].data_type": Honoured("the output's datatype (TYPE_STRING is BYTES); required"),
    "output[].dims": Honoured("without the batch dimension if max_batch_size is above 0; required"),
    "output[].reshape": Honoured("the shape that the runtime gives"),
    "output[].reshape.shape": Honoured("must have as many elements as dims"),
    "output[].label_filename": Honoured("becomes 'labels'; must lie inside the model's folder"),
    "output[].is_shape_tensor": _SHAPE_TENSOR,
    "output[].is_non_linear_format_io": _NON_LINEAR,
    "batch_input": Refused(
        "inputs derived from a batch belong to ragged batching, which is not supported",
        "let clients send the input",
    ),
    "batch_output": Refused(
        "outputs scattered by input shape belong to ragged batching, which is not supported",
        "give each output the batch as its first dimension",
    ),
    # ---- scheduling ----
    "dynamic_batching": Honoured(
        "requests are put together, also if the block is empty; without it a model with a"
        " max_batch_size runs its requests one by one, as in Triton"
    ),
    "dynamic_batching.preferred_batch_size": Honoured("becomes 'preferred_sizes'"),
    "dynamic_batching.max_queue_delay_microseconds": Honoured("becomes 'max_delay_us'"),
    "dynamic_batching.preserve_ordering": Honoured("answers in the order of the requests"),
    "dynamic_batching.priority_levels": Honoured("number of levels, 1 the most urgent"),
    "dynamic_batching.default_priority_level": Honoured(
        "level of requests that name none; required with priority_levels"
    ),
    "dynamic_batching.default_queue_policy": Honoured("bounds of the queue"),
    "dynamic_batching.default_queue_policy.timeout_action": Honoured("REJECT or DELAY"),
    "dynamic_batching.default_queue_policy.default_timeout_microseconds": Honoured(
        "longest wait in the queue"
    ),
    "dynamic_batching.default_queue_policy.allow_timeout_override": Honoured(
        "whether a request's timeout may shorten the default; without a default there is nothing"
        " to override and a request's own timeout always counts"
    ),
    "dynamic_batching.default_queue_policy.max_queue_size": Honoured("most requests that wait"),
    "dynamic_batching.priority_queue_policy": Honoured(
        "a level's policy, in place of the whole default policy, as in Triton"
    ),
    "dynamic_batching.priority_queue_policy[].timeout_action": Honoured("REJECT or DELAY"),
    "dynamic_batching.priority_queue_policy[].default_timeout_microseconds": Honoured(
        "longest wait in the queue at this level"
    ),
    "dynamic_batching.priority_queue_policy[].allow_timeout_override": Honoured(
        "as in default_queue_policy, for this level"
    ),
    "dynamic_batching.priority_queue_policy[].max_queue_size": Honoured(
        "most requests of this level that wait"
    ),
    "sequence_batching": Refused(
        "state that the server keeps between requests is not supported",
        f"pass the state as an input and output of the model, or {WITH_TRITON}",
    ),
    "ensemble_scheduling": Refused(
        "pipelines of models are not declared in a model's configuration here",
        f"call the models one after the other, join them in one ONNX graph, or {WITH_TRITON}",
    ),
    # ---- where it runs ----
    "instance_group": Honoured("how many batches run at the same time, and on which device"),
    "instance_group[].name": Honoured("no effect but in the configuration shown: a label"),
    "instance_group[].kind": Honoured(
        "KIND_CPU, KIND_GPU or KIND_AUTO, the same in every group; KIND_MODEL only for the"
        " runtime python, whose models place themselves"
    ),
    "instance_group[].count": Honoured("instances, on each of 'gpus' where they are given; 0 is 1"),
    "instance_group[].gpus": Honoured(
        "GPUs to spread the instances over; without them the first GPU (Triton: every GPU)"
    ),
    "instance_group[].rate_limiter": Refused(
        "resources shared between models are not rationed",
        "bound the model's own work with instance_group.count or 'limits' in model.yaml",
    ),
    "instance_group[].secondary_devices": Refused(
        "secondary devices such as NVDLA are not supported",
        "run the model on a GPU or the CPU",
    ),
    "instance_group[].profile": Refused(
        "optimization profiles belong to TensorRT plans",
        "give trt_profile_*_shapes as parameters of the 'tensorrt' accelerator",
    ),
    "instance_group[].passive": Refused(
        "every instance here takes requests",
        "leave the group out",
    ),
    "instance_group[].host_policy": Refused(
        "host policies are defined on Triton's command line, which does not exist here",
        "pin the process with taskset or numactl, or the threads with the parameter"
        " session.intra_op_thread_affinities",
    ),
    # ---- optimization ----
    "optimization": Honoured("options of ONNX Runtime"),
    "optimization.graph": Honoured("graph optimization"),
    "optimization.graph.level": Honoured(
        "becomes the option 'graph_optimization', as in Triton's ONNX backend: 0 all, -1 basic,"
        " 1 extended, 2 disabled"
    ),
    "optimization.priority": Refused(
        "models do not get a share of the GPU by priority",
        "give the urgent model more instances, or a GPU of its own",
    ),
    "optimization.cuda": Honoured("nothing inside it may be turned on"),
    "optimization.cuda.graphs": Refused(
        "the backend of this setting, TensorRT plans, does not exist here",
        "set enable_cuda_graph on the 'cuda' accelerator or trt_cuda_graph_enable on 'tensorrt'",
    ),
    "optimization.cuda.busy_wait_events": Refused(
        "the backend of this setting, TensorRT plans, does not exist here", "leave it out"
    ),
    "optimization.cuda.graph_spec": Refused(
        "the backend of this setting, TensorRT plans, does not exist here",
        "set trt_cuda_graph_enable on the 'tensorrt' accelerator",
    ),
    "optimization.cuda.output_copy_stream": Refused(
        "the backend of this setting, TensorRT plans, does not exist here",
        "set do_copy_in_default_stream to 0 on the 'cuda' accelerator",
    ),
    "optimization.execution_accelerators": Honoured("execution providers of ONNX Runtime"),
    "optimization.execution_accelerators.gpu_execution_accelerator": Honoured(
        "becomes the option 'providers': tensorrt or cuda; CUDA always stands behind TensorRT"
    ),
    "optimization.execution_accelerators.gpu_execution_accelerator[].name": Honoured(
        "tensorrt or cuda"
    ),
    "optimization.execution_accelerators.gpu_execution_accelerator[].parameters": Honoured(
        "become options 'tensorrt.<name>' and 'cuda.<name>' under ONNX Runtime's names"
    ),
    "optimization.execution_accelerators.cpu_execution_accelerator": Refused(
        "no accelerator for the CPU, such as openvino, comes with the ONNX runtime here",
        "leave it out: ONNX Runtime's own CPU kernels are used",
    ),
    "optimization.input_pinned_memory": Honoured("see its field"),
    "optimization.input_pinned_memory.enable": _NO_PIN,
    "optimization.output_pinned_memory": Honoured("see its field"),
    "optimization.output_pinned_memory.enable": _NO_PIN,
    "optimization.gather_kernel_buffer_threshold": Refused(
        "batches are put together in host memory, without a gather kernel", "leave it out"
    ),
    "optimization.eager_batching": Refused(
        "a batch is put together when an instance is free, so that it can grow until then",
        "leave it out",
    ),
    "parameters": Honoured("options of the runtime; an unknown name is refused"),
    "parameters[].string_value": Honoured("the option's value"),
    # ---- everything else ----
    "model_warmup": Honoured("becomes 'warmup': run before a version is published"),
    "model_warmup[].name": Honoured("named in the log"),
    "model_warmup[].batch_size": Honoured("rows put in front of dims; 0 is none"),
    "model_warmup[].inputs": Honoured("the request's tensors"),
    "model_warmup[].inputs[].data_type": Honoured("the tensor's datatype; required"),
    "model_warmup[].inputs[].dims": Honoured("the tensor's dimensions; each at least 1"),
    "model_warmup[].inputs[].zero_data": Honoured("a tensor of zeros"),
    "model_warmup[].inputs[].random_data": Honoured("a tensor of random values"),
    "model_warmup[].inputs[].input_data_file": Honoured("raw bytes in the folder 'warmup'"),
    "model_warmup[].count": Honoured("how often; 0 is once"),
    "model_operations": Honoured("nothing inside it may be set"),
    "model_operations.op_library_filename": Refused(
        "libraries of custom operators are native code and are not loaded from a model's folder",
        "express the operator in standard ONNX, or install a runtime plugin that brings it",
    ),
    "model_transaction_policy": Honoured("see its field"),
    "model_transaction_policy.decoupled": Honoured(
        "becomes 'decoupled': a request may have any number of answers"
    ),
    "model_repository_agents": Honoured("nothing inside it may be set"),
    "model_repository_agents.agents": Refused(
        "Triton's repository agents are native plugins",
        "prepare or verify the files before they come into the directory",
    ),
    "response_cache": Honoured("see its field"),
    "response_cache.enable": Refused(
        "responses are not cached", "leave it out, or put a cache in front of the gateway"
    ),
    "metric_tags": Refused(
        "metrics carry fixed labels, so that they aggregate",
        "add labels where the metrics are scraped (Prometheus: relabel_configs)",
    ),
    "model_metrics": Honoured("nothing inside it may be set"),
    "model_metrics.metric_control": Refused(
        "histogram buckets are the same for every model, so that they aggregate",
        "leave it out",
    ),
}
"""Dotted path of a field → what becomes of it."""
