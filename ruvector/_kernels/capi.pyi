from typing import Any

ABI_VERSION: int
_api: Any
