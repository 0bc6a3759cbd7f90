"""What tests share: builders of models, a server process, raw HTTP."""
