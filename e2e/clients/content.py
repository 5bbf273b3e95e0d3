"""What the forge serves: a repository with a file in Git LFS, and one package for each package manager."""

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile

# As an LFS object: what does not compress, and is the same at each start. The clients know its hash.
LARGE = b"".join(hashlib.sha256(b"large %d" % number).digest() for number in range(10_000))
# What anybody has set up for git on this machine is not the forge's.
GIT_ENVIRONMENT = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
AUTHOR = "forge <forge@forge.test> 1700000000 +0000"


def make(root):
    """The repository and the LFS objects, anew: nothing is left of what was pushed before."""
    repository, objects = os.path.join(root, "git", "app.git"), os.path.join(root, "lfs")
    for folder in (repository, objects):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
    oid = hashlib.sha256(LARGE).hexdigest()
    with open(os.path.join(objects, oid), "wb") as file:
        file.write(LARGE)
    make_repository(repository, {
        ".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n",
        "README": "of the forge\n",
        "large.bin": f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(LARGE)}\n",
    })


def make_repository(path, files):
    """A bare repository with one commit, written without a work tree so that no filter of git-lfs is asked."""

    def git(*words, text=""):
        done = subprocess.run(
            ["git", f"--git-dir={path}", *words], input=text.encode(), stdout=subprocess.PIPE, check=True, env=GIT_ENVIRONMENT
        )
        return done.stdout.decode().strip()

    git("init", "--quiet", "--bare", "--initial-branch=main")
    git("config", "http.receivepack", "true")
    # It would run on in the background, as nobody's child.
    git("config", "receive.autogc", "false")
    blobs = {name: git("hash-object", "-w", "--stdin", text=text) for name, text in files.items()}
    tree = git("mktree", text="".join(f"100644 blob {blob}\t{name}\n" for name, blob in blobs.items()))
    commit = f"tree {tree}\nauthor {AUTHOR}\ncommitter {AUTHOR}\n\nBegin\n"
    git("update-ref", "refs/heads/main", git("hash-object", "-t", "commit", "-w", "--stdin", text=commit))


def packages(base):
    """The registries, as files by their path: a content type and bytes. `base` is the forge's URL."""
    return {**pypi(), **npm(base), **cargo(base)}


def pypi():
    about = "demo-1.0.dist-info"
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("demo.py", "FROM = 'the forge'\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: forge\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", f"demo.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    name, content = "demo-1.0-py3-none-any.whl", wheel.getvalue()
    link = f"../../files/{name}#sha256={hashlib.sha256(content).hexdigest()}"
    page = f'<!DOCTYPE html><html><body><a href="{link}">{name}</a></body></html>'
    return {
        "/pypi/simple/demo/": ("text/html", page.encode()),
        f"/pypi/files/{name}": ("application/octet-stream", content),
    }


def npm(base):
    package = {"name": "@team/demo", "version": "1.0.0"}
    content = tarball({"package/package.json": json.dumps(package)})
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    path = "/npm/@team/demo/-/demo-1.0.0.tgz"
    version = {**package, "dist": {"tarball": base + path, "integrity": integrity}}
    packument = {"name": "@team/demo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    return {"/npm/@team/demo": as_json(packument), path: ("application/octet-stream", content)}


def cargo(base):
    manifest = '[package]\nname = "demo"\nversion = "1.0.0"\nedition = "2021"\n'
    content = tarball({"demo-1.0.0/Cargo.toml": manifest, "demo-1.0.0/src/lib.rs": ""})
    entry = {"name": "demo", "vers": "1.0.0", "deps": [], "features": {}, "yanked": False}
    return {
        "/cargo/index/config.json": as_json({"dl": f"{base}/cargo/dl", "auth-required": True}),
        "/cargo/index/de/mo/demo": as_json({**entry, "cksum": hashlib.sha256(content).hexdigest()}),
        "/cargo/dl/demo/1.0.0/download": ("application/octet-stream", content),
    }


def tarball(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return gzip.compress(packed.getvalue(), mtime=0)


def as_json(value):
    return "application/json", json.dumps(value).encode()
