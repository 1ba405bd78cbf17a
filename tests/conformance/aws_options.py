"""Prints the options of the AWS CLI in whose environment it runs, global ones under "", as JSON."""

import json

from awscli.clidriver import create_clidriver

driver = create_clidriver()
options = {"": sorted(driver._get_argument_table())}
commands = driver._get_command_table()["sagemaker-runtime"]._get_command_table()
for name, command in commands.items():
    if name != "help":
        options[name] = sorted(command.arg_table)
print(json.dumps(options))
