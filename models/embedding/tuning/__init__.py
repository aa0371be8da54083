"""The search for the fastest plan: tables that are alike first, then the whole."""
