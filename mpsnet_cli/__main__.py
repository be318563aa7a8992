"""python -m mpsnet_cli"""

from mpsnet_cli.cli import main

main(prog_name="mpsnet")
