from django.contrib import admin

from .models import Customer, Order, Picture, Product, Report, Sale, SalesImport

admin.site.register([Customer, Picture, Product, Report, Sale, SalesImport])


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ["id", "customer", "product", "quantity", "status", "problem", "tries", "created_at"]
    list_filter = ["status"]
