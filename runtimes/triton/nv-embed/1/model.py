"""What Triton's Python backend loads: NV-Embed, of the artifact that `config.pbtxt` names."""

from nvembed_deploy.serve.triton import TritonPythonModel  # noqa: F401 - Triton looks for it here
