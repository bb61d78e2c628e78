"""Fixtures of the study: a small, learnable task, twelve classes whose images lie around shifted versions of their texts.

Also lets the tests of this folder import `toy`, whichever way pytest was started.
"""

import sys
from pathlib import Path
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
