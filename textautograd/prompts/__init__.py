"""Every prompt that the framework itself sends, beside the strict parser of its reply."""
