"""Files that the user has, below one folder that an environment variable names. Floor 1."""

import os
import pathlib

FOLDER_VARIABLE = "DEEPSEEK_JAX_DATA"


def find(name: str) -> pathlib.Path:
    """The file of this name below the folder of the environment variable DEEPSEEK_JAX_DATA.

    Raises:
      FileNotFoundError: the variable is not set, or the file isn't there.
    """
    folder = os.environ.get(FOLDER_VARIABLE, "")
    advice = f"set the environment variable {FOLDER_VARIABLE} to a folder with {name}"
    if not folder:
        raise FileNotFoundError(f"{FOLDER_VARIABLE} is not set; {advice}")
    path = pathlib.Path(folder, *name.split("/"))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {advice}")
    return path
