"""HTCondor file-transfer plugin (protocol 2) that serves osdf:///chtc/... from a local folder.

osdf_plugin.py ROOT -classad | -infile F -outfile F [-upload]
"""

import os
import re
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

ATTR = re.compile(r'(\w+)\s*=\s*"((?:[^"\\]|\\.)*)"')


def ads(path):
    text = open(path).read()
    for block in re.findall(r"\[(.*?)\]", text, re.S) or [text]:
        ad = dict(ATTR.findall(block))
        if "Url" in ad:
            yield ad


def main(root, args):
    if "-classad" in args:
        print(
            'MultipleFileSupport = true\nPluginVersion = "0.1"\nPluginType = "FileTransfer"\n'
            'ProtocolVersion = 2\nSupportedMethods = "osdf"'
        )
        return 0
    infile, outfile = (args[args.index(o) + 1] for o in ("-infile", "-outfile"))
    upload, failed, out = "-upload" in args, False, []
    for ad in ads(infile):
        start, url, local = time.time(), ad["Url"], ad["LocalFileName"]
        parts = urlsplit(url)
        remote = os.path.join(root, os.path.relpath(parts.path, "/chtc"))
        res = {
            "TransferProtocol": '"osdf"',
            "TransferUrl": f'"{url}"',
            "TransferFileName": f'"{os.path.basename(local)}"',
            "TransferType": '"upload"' if upload else '"download"',
            "TransferStartTime": int(start),
        }
        try:
            src, dst = (local, remote) if upload else (remote, local)
            Path(dst).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(src, dst)
            size = os.path.getsize(src)
            res |= {
                "TransferSuccess": "true",
                "TransferFileBytes": size,
                "TransferTotalBytes": size,
            }
        except OSError as e:
            failed, message = True, str(e).replace('"', "'")
            res |= {"TransferSuccess": "false", "TransferError": f'"{message}"'}
        res |= {
            "TransferEndTime": int(time.time()),
            "ConnectionTimeSeconds": round(time.time() - start, 3),
        }
        out.append("[ " + "; ".join(f"{k} = {v}" for k, v in res.items()) + "; ]")
    with open(outfile, "w") as f:
        f.write("\n".join(out) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
