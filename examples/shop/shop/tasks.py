"""The shop's background work. Each task is given ids, not objects, and may run twice: after a crash it does."""

import csv
import io
import os
import time
from datetime import timedelta
from decimal import Decimal

from django.conf import settings
from django.contrib.auth.models import User
from django.core.files.storage import default_storage
from django.core.mail import send_mail
from django.db import transaction
from django.db.models import F, Sum
from django.utils import timezone
from PIL import Image

from celeriac import shared_task
from celeriac.exceptions import SoftTimeLimitExceeded

from . import services
from .models import Customer, Order, Picture, Product, Report, Sale, SalesImport

# -- mails and orders ------------------------------------------------------------------------------------------------


@shared_task(autoretry_for=(OSError,), retry_backoff=True)
def send_welcome(user_id):
    user = User.objects.get(pk=user_id)
    send_mail("Welcome", f"Dear {user.username}, it is good to have you here.", None, [user.email])


@shared_task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=True, retry_jitter=False, max_retries=3)
def process_order(self, order_id):
    """Asks the bank, again and again while it does not answer. A card that is refused is the end of it."""
    order = Order.objects.select_related("product").get(pk=order_id)
    if order.status == Order.Status.PAID:
        return
    Order.objects.filter(pk=order_id).update(tries=F("tries") + 1)
    self.update_state(state="PROGRESS", meta={"done": 1, "total": 2, "text": "Asking the bank"})
    services.charge(order.card, order.quantity * order.product.price, attempt=self.request.retries + 1)
    with transaction.atomic():
        Order.objects.filter(pk=order_id).update(status=Order.Status.PAID)
        Product.objects.filter(pk=order.product_id).update(stock=F("stock") - order.quantity)
        send_receipt.delay(order_id)  # goes out when this transaction is committed, and only then


@shared_task
def order_failed(request, exc, traceback):
    """The error callback of process_order: called once, when it has failed for good."""
    order = Order.objects.get(pk=request.args[0])
    order.status, order.problem = Order.Status.FAILED, str(exc)
    order.save(update_fields=["status", "problem"])
    send_mail(f"Order {order.pk} has failed", str(exc), None, [settings.MANAGER_EMAIL])


@shared_task(autoretry_for=(OSError,), retry_backoff=True)
def send_receipt(order_id):
    order = Order.objects.select_related("customer__user", "product").get(pk=order_id)
    send_mail(f"Receipt for order {order.pk}", f"{order.quantity} × {order.product}", None, [order.customer.user.email])


# -- pictures --------------------------------------------------------------------------------------------------------

SIZES = (64, 128, 256)


@shared_task
def make_thumbnail(picture_id, size):
    picture = Picture.objects.get(pk=picture_id)
    name = f"thumbnails/{picture_id}-{size}.png"
    small = io.BytesIO()
    with Image.open(picture.file) as image:
        image.thumbnail((size, size))
        image.save(small, format="PNG")
    default_storage.delete(name)
    return default_storage.save(name, small)


@shared_task
def keep_thumbnails(names, picture_id):
    """Comes once, when all thumbnails of the picture are made."""
    Picture.objects.filter(pk=picture_id).update(thumbnails=names)


# -- an import with progress, a report with retries by hand ----------------------------------------------------------


@shared_task(bind=True)
def import_sales(self, import_id):
    """Tells how far it is. If its process dies, it runs again; what is there already is written over."""
    sales = SalesImport.objects.get(pk=import_id)
    with sales.file.open("r") as file:
        rows = list(csv.DictReader(file))
    for done in range(0, len(rows), 100):
        self.update_state(
            state="PROGRESS", meta={"done": done, "total": len(rows), "text": f"Row {done} of {len(rows)}", "pid": os.getpid()}
        )
        Sale.objects.bulk_create(
            [
                Sale(number=row["order"], country=row["country"], amount=int(row["quantity"]) * Decimal(row["unit_price"]))
                for row in rows[done : done + 100]
            ],
            update_conflicts=True,
            unique_fields=["number"],
            update_fields=["country", "amount"],
        )
        time.sleep(0.1)  # so that a person sees the bar move
    SalesImport.objects.filter(pk=import_id).update(rows=len(rows))
    return {"rows": len(rows)}


@shared_task(bind=True, max_retries=5)
def make_report(self, report_id):
    """Retries by hand: after 1 s, 2 s, 4 s …"""
    Report.objects.filter(pk=report_id).update(tries=F("tries") + 1)
    try:
        rate = services.exchange_rate(attempt=self.request.retries + 1)
    except ConnectionError as error:
        raise self.retry(exc=error, countdown=2**self.request.retries) from error
    countries = Sale.objects.values("country").annotate(amount=Sum("amount")).order_by("-amount")
    lines = [f"{line['country']}: {line['amount']:,.2f} EUR, {float(line['amount']) * rate:,.0f} NPR" for line in countries]
    Report.objects.filter(pk=report_id).update(text="\n".join(lines))


# -- small things ----------------------------------------------------------------------------------------------------


@shared_task(soft_time_limit=2, time_limit=10)
def compare_prices():
    """What the suppliers have answered within two seconds."""
    prices = {}
    try:
        for supplier in ("Asha", "Bikram", "Chandra"):
            prices[supplier] = services.ask_price(supplier)
    except SoftTimeLimitExceeded:
        pass
    return prices


@shared_task
def add(x, y):
    return x + y


# -- by schedule: see CELERY_BEAT_SCHEDULE ---------------------------------------------------------------------------


@shared_task
def clean_up(days):
    """Forgets orders that were not paid."""
    old = Order.objects.filter(status=Order.Status.FAILED, created_at__lt=timezone.now() - timedelta(days=days))
    return old.delete()[0]


@shared_task
def send_digest():
    week = Order.objects.filter(status=Order.Status.PAID, created_at__gte=timezone.now() - timedelta(days=7))
    send_mail("The week", f"{week.count()} orders were paid.", None, [settings.MANAGER_EMAIL])


@shared_task
def sync_inventory():
    for product in Product.objects.all():
        Product.objects.filter(pk=product.pk).update(stock=services.count_stock(product.name))


@shared_task
def send_birthday_mails():
    today = timezone.localdate()
    customers = Customer.objects.filter(birthday__month=today.month, birthday__day=today.day).select_related("user")
    for customer in customers:
        send_mail("Happy birthday", f"Dear {customer}, celeriac is on us today.", None, [customer.user.email])
    return len(customers)
