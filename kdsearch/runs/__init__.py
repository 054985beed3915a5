"""A search from config to report: data, teacher, training, trials, engines, study, finalists, report."""
