#!/usr/bin/env python3
"""Times every model standalone on this device, batch 4^0..4^5, into raw_data/.

python generate_data.py [--models rm1,wnd] [flags of DeepRecSys.py, as --table_scale or --nepochs]
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from accelerator.generate import main

    sys.exit(main(__file__, sys.argv[1:]))
