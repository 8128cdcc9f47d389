from django.conf import settings
from django.db import models


class Customer(models.Model):
    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    birthday = models.DateField(null=True, blank=True)

    def __str__(self):
        return str(self.user)


class Product(models.Model):
    name = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    stock = models.IntegerField(default=0)

    def __str__(self):
        return self.name


class Order(models.Model):
    class Status(models.TextChoices):
        NEW = "new"
        PAID = "paid"
        FAILED = "failed"

    customer = models.ForeignKey(Customer, on_delete=models.CASCADE)
    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    quantity = models.PositiveIntegerField(default=1)
    card = models.CharField(max_length=19, help_text="A card that begins with 0 is refused.")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.NEW)
    problem = models.CharField(max_length=200, blank=True)
    tries = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self):
        return f"order {self.pk}"


class Picture(models.Model):
    file = models.ImageField(upload_to="pictures")
    thumbnails = models.JSONField(default=list, help_text="Their names, the smallest first.")

    def __str__(self):
        return self.file.name


class SalesImport(models.Model):
    file = models.FileField(upload_to="imports")
    rows = models.PositiveIntegerField(default=0)

    def __str__(self):
        return self.file.name


class Sale(models.Model):
    """A line of the old till's books."""

    number = models.CharField(max_length=20, unique=True)
    country = models.CharField(max_length=2)
    amount = models.DecimalField(max_digits=10, decimal_places=2)

    def __str__(self):
        return self.number


class Report(models.Model):
    text = models.TextField(blank=True)
    tries = models.PositiveIntegerField(default=0)

    def __str__(self):
        return f"report {self.pk}"
