drop table stripe.report_marks;
drop table billing.invoice_lines;
drop table billing.invoices;
drop table billing.billing_periods;
drop table billing.prices;
