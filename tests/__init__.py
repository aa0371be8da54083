"""The tests, as a package: installed ones of other projects are called so, too."""
