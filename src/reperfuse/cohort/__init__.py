"""Who is there: from any inbox to a BIDS tree, one tidy table, and folds that stay put."""
