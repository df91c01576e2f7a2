"""This package owns the subcommands of `nvembed-deploy` that have no package of their own."""
